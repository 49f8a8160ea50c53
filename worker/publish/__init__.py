"""The publisher: MongoDB's documents and changes into Kafka."""
