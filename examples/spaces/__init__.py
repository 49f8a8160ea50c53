"""The reference application: a multi-tenant platform for spaces to let, and the oracle of its move."""
