"""A right mapping, the ways to get it wrong, and what is told of each, without the file's name."""

from __future__ import annotations

RIGHT = """\
version: 1
database: shop
collections:
  customers:
    table: customers
    tenant: {path: tenantId, column: tenant_id}
    rest: rest
    columns:
      email: {type: text, required: true}
  orders:
    table: orders
    tenant: {path: tenantId, column: tenant_id}
    rest: rest
    columns:
      customer_id: {path: customerId, type: uuid, references: customers}
      total: {type: numeric}
      status: {type: enum(order_status), values: [open, paid]}
      address: {type: jsonb}
    children:
      lines:
        table: order_lines
        parent: order_id
        position: position
        tenant: tenant_id
        rest: rest
        columns:
          sku: {type: varchar(20)}
        children:
          discounts:
            table: order_line_discounts
            parent: [order_id, line]
            position: position
            tenant: tenant_id
            rest: rest
            columns:
              percent: {type: numeric}
    ignore: [legacy]
"""
TENANT, TOTAL = "{path: tenantId, column: tenant_id}", "total: {type: numeric}"
ONE_NAME = "must be a plain SQL name (letters, digits, '_', at most 63, no schema before it)"
TYPES = (
    "text, varchar, enum, uuid, boolean, smallint, integer, bigint, double precision, numeric, timestamptz, "
    "date, bytea, jsonb; arrays end in []"
)
LABELS = "enum needs its labels in `values`, and no other type has any"
SOURCE = "say where the tenant comes from: one of path, constant, name, parent"
BLOCK = "must be a block of `name: value` lines"
QUOTES = "must be text: a number, yes, no or a date needs quotes"
ORDERS, LINES = "collections.orders", "collections.orders.children.lines"

# What is replaced in it, by what, and all that is told then.
WRONG: dict[str, tuple[str, str, str]] = {
    "an unknown setting": (
        "    rest: rest",
        "    rset: rest",
        "7: collections.customers.rset: no such setting; did you mean rest?",
    ),
    "an unknown setting of a column": (
        "required: true",
        "requird: true",
        "9: collections.customers.columns.email.requird: no such setting; did you mean required?",
    ),
    "an unknown setting like none": (
        "    ignore: [legacy]",
        "    zzz: 1",
        "37: collections.orders.zzz: no such setting",
    ),
    "an unknown type": (
        "type: text",
        "type: string",
        f"9: collections.customers.columns.email.type: no such type; one of {TYPES}",
    ),
    "a misspelt type": (
        "type: jsonb",
        "type: json",
        f"18: {ORDERS}.columns.address.type: no such type; did you mean jsonb?",
    ),
    "no type": (TOTAL, "total: {path: total}", f"16: {ORDERS}.columns.total.type: must be set"),
    "no table": ("    table: customers\n", "", "4: collections.customers.table: must be set"),
    "no tenant": (
        f"    tenant: {TENANT}\n",
        "",
        "4: collections.customers.tenant: must be set (null: the rows are shared by all tenants)",
    ),
    "no rest column": (
        "    rest: rest\n",
        "",
        "4: collections.customers.rest: must be set (the jsonb column for what no other column holds)",
    ),
    "a table with a schema": (
        "table: customers",
        "table: shop.customers",
        f"5: collections.customers.table: {ONE_NAME}",
    ),
    "a column that is no name": ("email:", "e-mail:", f"9: collections.customers.columns.e-mail: {ONE_NAME}"),
    "a bad path": (
        "path: customerId",
        "path: customer..id",
        f"15: {ORDERS}.columns.customer_id.path: must be field names joined by dots",
    ),
    "a bad path in a list": (
        "ignore: [legacy]",
        "ignore:\n    - legacy\n    - a..b",
        f"39: {ORDERS}.ignore.1: must be field names joined by dots",
    ),
    "a column with two purposes": (
        "email: {",
        "tenant_id: {",
        "9: collections.customers.columns.tenant_id: column tenant_id is tenant.column already",
    ),
    "one column for tenant and rest": (
        "rest: rest",
        "rest: tenant_id",
        "6: collections.customers.tenant.column: column tenant_id is rest already",
    ),
    "one column of a child table for two": (
        "        position: position",
        "        position: order_id",
        f"23: {LINES}.position: column order_id is parent already",
    ),
    "a path mapped twice": (
        TOTAL,
        "total: {path: status, type: numeric}",
        f"17: {ORDERS}.columns.status: field status is mapped twice, by columns.total too",
    ),
    "an array that is a column as well": (
        TOTAL,
        "total: {path: lines, type: jsonb}",
        f"20: {LINES}: field lines is mapped twice, by columns.total too",
    ),
    "a path that is ignored and mapped": (
        "[legacy]",
        "[legacy, total]",
        f"37: {ORDERS}.ignore.1: field total is mapped twice, by columns.total too",
    ),
    "a path inside another": (
        TOTAL,
        "total: {path: address.total, type: numeric}",
        f"16: {ORDERS}.columns.total: field address.total lies inside address, which is mapped as a whole",
    ),
    "the id as a column": (
        TOTAL,
        "total: {path: _id, type: uuid}",
        f"16: {ORDERS}.columns.total: field _id is mapped, but _id has its own column",
    ),
    "a parent key that is too short": (
        "parent: [order_id, line]",
        "parent: order_id",
        f"31: {LINES}.children.discounts.parent: needs 2 column(s), the document's row id, then the position "
        "in each array above; it has 1",
    ),
    "a parent key that is too long": (
        "parent: order_id\n",
        "parent: [order_id, line]\n",
        f"22: {LINES}.parent: needs 1 column(s), the document's row id; it has 2",
    ),
    "a child table without the tenant": (
        "        tenant: tenant_id\n",
        "",
        f"20: {LINES}.tenant: must be set, as the collection has a tenant",
    ),
    "an enum without values": (", values: [open, paid]", "", f"17: {ORDERS}.columns.status.values: {LABELS}"),
    "an enum with no values": ("[open, paid]", "[]", f"17: {ORDERS}.columns.status.values: {LABELS}"),
    "values of a text": (
        "type: text",
        "type: text, values: [a]",
        f"9: collections.customers.columns.email.values: {LABELS}",
    ),
    "a label twice": (
        "[open, paid]",
        "[open, paid, open]",
        f"17: {ORDERS}.columns.status.values: label open stands twice",
    ),
    "a default that is no label": (
        "[open, paid]",
        "[open, paid], default: payed",
        f"17: {ORDERS}.columns.status.default: no value of enum; did you mean paid?",
    ),
    "a default of a required column": (
        "required: true",
        "required: true, default: x",
        "9: collections.customers.columns.email.default: a required column takes no default: choose one of "
        "the two",
    ),
    "a constant of another type": (
        TOTAL,
        "total: {type: integer, constant: many}",
        f"16: {ORDERS}.columns.total.constant: no value of integer",
    ),
    "a constant with a path": (
        TOTAL,
        "total: {type: integer, path: x, constant: 1}",
        f"16: {ORDERS}.columns.total.constant: a constant comes from no field: leave path, required, misfit, "
        "default out",
    ),
    "a constant array": (
        TOTAL,
        "total: {type: 'text[]', constant: [a]}",
        f"16: {ORDERS}.columns.total.constant: text[] takes no value from the mapping",
    ),
    "references that are no uuid": (
        "type: uuid",
        "type: text",
        f"15: {ORDERS}.columns.customer_id.references: only a uuid column refers to documents, not text",
    ),
    "references to an unknown collection": (
        "references: customers",
        "references: customer",
        f"15: {ORDERS}.columns.customer_id.references: the mapping has no collection customer; did you mean "
        "customers?",
    ),
    "varchar(0)": (
        "varchar(20)",
        "varchar(0)",
        f"27: {LINES}.columns.sku.type: write varchar(n), n from 1 to 10485760",
    ),
    "numeric with digits": (
        TOTAL,
        "total: {type: 'numeric(10,2)'}",
        f"16: {ORDERS}.columns.total.type: numeric takes no argument here",
    ),
    "an array of jsonb": (
        "type: jsonb",
        "type: 'jsonb[]'",
        f"18: {ORDERS}.columns.address.type: jsonb[] is not supported; jsonb holds arrays itself",
    ),
    "a tenant with two sources": (
        TENANT,
        "{path: tenantId, constant: 1, column: tenant_id}",
        f"6: collections.customers.tenant: {SOURCE}",
    ),
    "a tenant with no source": (
        TENANT,
        "{column: tenant_id}",
        f"6: collections.customers.tenant: {SOURCE}",
    ),
    "a tenant that is a list": (
        TENANT,
        "{constant: [1], column: tenant_id}",
        "6: collections.customers.tenant.constant: must be text or a whole number",
    ),
    "a tenant that is text": (TENANT, "tenantId", f"6: collections.customers.tenant: {BLOCK}"),
    "a tenant in some other name": (
        TENANT,
        "{name: index, column: tenant_id}",
        "6: collections.customers.tenant.name: must be 'database' or 'collection'",
    ),
    "a name without the placeholder": (
        f"tenant: {TENANT}\n    rest: rest\n    columns:\n      customer_id",
        "tenant: {name: collection, column: tenant_id}\n    rest: rest\n    columns:\n      customer_id",
        f"12: {ORDERS}.tenant.name: the collection's name orders has no {{tenant}}",
    ),
    "a placeholder that is not the tenant's": (
        "  orders:",
        "  'orders_{tenant}':",
        "12: collections.orders_{tenant}.tenant: the collection's name has {tenant}: the tenant must be "
        "{name: collection}",
    ),
    "another placeholder": (
        "database: shop",
        "database: 'shop_{tenantId}'",
        "2: database: the only placeholder is {tenant}",
    ),
    "one table for two collections": (
        "table: orders",
        "table: customers",
        f"11: {ORDERS}.table: table customers is taken, by collection customers",
    ),
    "one table for an array and its collection": (
        "table: order_lines",
        "table: orders",
        f"21: {LINES}.table: table orders is taken, by collection orders",
    ),
    "a key twice": (
        "    rest: rest\n",
        "    rest: rest\n    rest: rest2\n",
        "7: collections.customers.rest: stands twice, in line 8 again",
    ),
    "a key that YAML takes for a truth": (
        "email:",
        "yes:",
        f"9: collections.customers.columns.yes: {QUOTES}",
    ),
    "a name that YAML takes for a number": (
        "table: customers",
        "table: 7",
        f"5: collections.customers.table: {QUOTES}",
    ),
    "a column that is only a type": (
        "{type: jsonb}",
        "jsonb",
        f"18: {ORDERS}.columns.address: {BLOCK}",
    ),
    "no YAML": ("database: shop", "database: [shop", "3: not YAML: expected ',' or ']', but got ':'"),
    "a tab": (
        "    table: customers",
        "\ttable: customers",
        "5: not YAML: found character '\\t' that cannot start any token",
    ),
    "a second document": (
        "    ignore: [legacy]\n",
        "---\nversion: 1\n",
        "37: not YAML: expected a single document in the stream but found another document",
    ),
    "version 2": ("version: 1", "version: 2", "1: version: must be 1"),
    "$ outside child tables": (
        TOTAL,
        "total: {path: $, type: numeric}",
        f"16: {ORDERS}.columns.total.path: $ is an array's element: only in children",
    ),
    "a parent that is unknown": (
        TENANT,
        "{parent: {collection: order, path: orderId}, column: tenant_id}",
        "6: collections.customers.tenant.parent.collection: the mapping has no collection order; did you "
        "mean orders?",
    ),
    "a parent of itself": (
        TENANT,
        "{parent: {collection: customers, path: referrer}, column: tenant_id}",
        "6: collections.customers.tenant.parent.collection: goes round: customers -> customers",
    ),
    "a parent without a path": (
        TENANT,
        "{parent: {collection: orders}, column: tenant_id}",
        "6: collections.customers.tenant.parent.path: must be set",
    ),
}

# Whole files.
WHOLE: dict[str, tuple[str | bytes, str]] = {
    "an empty file": ("", "1: the file is empty: docs/mapping.md has a mapping to begin with"),
    "nothing but a comment": (
        "# soon\n",
        "1: the file is empty: docs/mapping.md has a mapping to begin with",
    ),
    "a list instead of a mapping": ("- version: 1\n", f"1: mapping: {BLOCK}"),
    "text instead of a mapping": ("mapping\n", f"1: mapping: {BLOCK}"),
    "no collection": (
        "version: 1\ndatabase: shop\ncollections: {}\n",
        "3: collections: must name at least one",
    ),
    "a list of collections": (
        "version: 1\ndatabase: shop\ncollections: [orders]\n",
        f"3: collections: {BLOCK}",
    ),
    "a collection without content": (
        "version: 1\ndatabase: shop\ncollections:\n  orders:\n",
        f"4: collections.orders: {BLOCK}",
    ),
    "no UTF-8": (b"version: 1\ndatabase: caf\xe9\n", "2: not UTF-8"),
    "parents in a circle": (
        RIGHT.replace(TENANT, "{parent: {collection: orders, path: o}, column: tenant_id}", 1).replace(
            TENANT, "{parent: {collection: customers, path: c}, column: tenant_id}", 1
        ),
        "6: collections.customers.tenant.parent.collection: goes round: customers -> orders -> customers",
    ),
    "a parent that has no tenant": (
        RIGHT.replace(TENANT, "null", 1).replace(
            TENANT, "{parent: {collection: customers, path: c}, column: tenant_id}", 1
        ),
        f"12: {ORDERS}.tenant.parent.collection: customers has no tenant itself",
    ),
    "a tenant column of a table that has none": (
        RIGHT.replace(
            f"tenant: {TENANT}\n    rest: rest\n    columns:\n      customer_id",
            "tenant: null\n    rest: rest\n    columns:\n      customer_id",
        ),
        f"24: {LINES}.tenant: must be left out, as the collection has no tenant\n"
        f"33: {LINES}.children.discounts.tenant: must be left out, as the collection has no tenant",
    ),
    "many at once": (
        RIGHT.replace("version: 1", "version: 3").replace("type: text", "type: texd").replace("(20)", "(0)"),
        "1: version: must be 1\n"
        "9: collections.customers.columns.email.type: no such type; did you mean text?\n"
        f"27: {LINES}.columns.sku.type: write varchar(n), n from 1 to 10485760",
    ),
    "settings' own names as names": (
        "version: 1\ndatabase: shop\ncollections:\n  columns:\n    table: t\n    tenant: {path: x}\n"
        "    rest: rest\n    columns:\n      tenant: {typ: text}\n",
        "6: collections.columns.tenant.column: must be set\n"
        "9: collections.columns.columns.tenant.typ: no such setting; did you mean type?",
    ),
}
