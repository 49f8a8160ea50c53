// Makes this server a replica set of one, unless it is one, and ends when it can be written to.
// The member's host is the name by which every service of docker-compose.yml reaches it.
const ALREADY_INITIALIZED = 23;
const WAIT_MS = 60000;

try {
  rs.initiate({ _id: "rs0", members: [{ _id: 0, host: "mongo:27017" }] });
} catch (error) {
  if (error.code !== ALREADY_INITIALIZED) {
    throw error;
  }
}
const deadline = Date.now() + WAIT_MS;
while (!db.hello().isWritablePrimary) {
  if (Date.now() > deadline) {
    throw new Error("no writable primary after a minute");
  }
  sleep(200);
}
print("mongo is a writable primary");
