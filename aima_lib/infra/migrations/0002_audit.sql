DROP TABLE calls;
CREATE TABLE audit (
  seq INTEGER PRIMARY KEY,
  time TEXT NOT NULL,
  entry TEXT NOT NULL,
  unit TEXT NOT NULL,
  caller TEXT NOT NULL,
  code TEXT NOT NULL,
  intent INTEGER,
  run_id TEXT,
  plan_id TEXT,
  duration_ms REAL,
  arguments TEXT,
  hash BLOB NOT NULL
);
CREATE INDEX audit_unit ON audit (unit, seq);
