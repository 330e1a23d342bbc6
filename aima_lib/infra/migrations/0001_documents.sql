CREATE TABLE documents (
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  body TEXT NOT NULL CHECK (json_valid(body)),
  UNIQUE (kind, id)
);
CREATE INDEX run_status ON documents (json_extract(body, '$.status')) WHERE kind = 'run';
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  time TEXT NOT NULL,
  type TEXT NOT NULL,
  subject TEXT,
  payload TEXT NOT NULL
);
CREATE INDEX event_type ON events (type, seq);
CREATE TABLE calls (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  time TEXT NOT NULL,
  unit TEXT NOT NULL,
  caller TEXT NOT NULL,
  code TEXT NOT NULL,
  duration_ms REAL NOT NULL,
  run_id TEXT
);
