CREATE INDEX document_kind ON documents (kind);
CREATE INDEX run_parent ON documents (json_extract(body, '$.parent')) WHERE kind = 'run' AND json_extract(body, '$.parent') IS NOT NULL;
CREATE TABLE pipeline_versions (
  pipeline_id TEXT NOT NULL,
  version INTEGER NOT NULL,
  digest TEXT NOT NULL,
  document TEXT NOT NULL CHECK (json_valid(document)),
  creator TEXT CHECK (json_valid(creator)),
  created_at TEXT NOT NULL,
  PRIMARY KEY (pipeline_id, version)
) WITHOUT ROWID;
CREATE TABLE flows (
  seq INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  pipeline_id TEXT NOT NULL,
  version INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  state TEXT NOT NULL,
  cause TEXT CHECK (json_valid(cause)),
  began_at TEXT NOT NULL
);
CREATE TABLE steps (
  flow INTEGER NOT NULL,
  step TEXT NOT NULL,
  item INTEGER NOT NULL,
  undo INTEGER NOT NULL,
  status TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  ordinal INTEGER,
  approval_id TEXT,
  started_at TEXT,
  finished_at TEXT,
  output TEXT,
  error TEXT,
  PRIMARY KEY (flow, step, item, undo)
) WITHOUT ROWID;
CREATE TRIGGER run_forgotten AFTER DELETE ON documents WHEN old.kind = 'run' BEGIN
  DELETE FROM steps WHERE flow = (SELECT seq FROM flows WHERE run_id = old.id);
  DELETE FROM flows WHERE run_id = old.id;
END;
CREATE TABLE step_cache (
  digest TEXT PRIMARY KEY,
  output TEXT NOT NULL,
  expires_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE trigger_cursors (
  pipeline_id TEXT NOT NULL,
  place TEXT NOT NULL,
  cursor TEXT NOT NULL,
  PRIMARY KEY (pipeline_id, place)
) WITHOUT ROWID;
