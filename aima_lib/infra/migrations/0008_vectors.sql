CREATE TABLE vector_collections (
  key INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  dimensions INTEGER NOT NULL,
  count INTEGER NOT NULL,
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL
);
CREATE TABLE vectors (
  collection INTEGER NOT NULL,
  id TEXT NOT NULL,
  metadata TEXT NOT NULL CHECK (json_valid(metadata)),
  embedding BLOB NOT NULL,
  document TEXT,
  UNIQUE (collection, id)
);
