CREATE TABLE measurements (
  instance_id TEXT NOT NULL,
  started_at TEXT NOT NULL,
  model_id TEXT NOT NULL,
  digest TEXT,
  architecture TEXT,
  quantization TEXT,
  engine TEXT NOT NULL,
  version TEXT,
  device_id TEXT NOT NULL,
  device_kind TEXT NOT NULL,
  context_length INTEGER NOT NULL,
  parallel INTEGER NOT NULL,
  batch_size INTEGER NOT NULL,
  settings TEXT NOT NULL CHECK (json_valid(settings)),
  formula INTEGER NOT NULL,
  predicted_bytes INTEGER NOT NULL,
  low_bytes INTEGER NOT NULL,
  high_bytes INTEGER NOT NULL,
  compute_bytes INTEGER NOT NULL,
  checkpoint_bytes INTEGER NOT NULL,
  ready_bytes INTEGER NOT NULL,
  peak_bytes INTEGER NOT NULL,
  rss_bytes INTEGER,
  cgroup_bytes INTEGER,
  source TEXT NOT NULL,
  PRIMARY KEY (instance_id, started_at)
) WITHOUT ROWID;
CREATE INDEX measurement_engine ON measurements (engine, device_kind, started_at);
UPDATE documents SET body = json_insert(
  body, '$.active_parameters', NULL, '$.modalities', json('[]'), '$.chat_template', NULL, '$.warnings', json('[]')
) WHERE kind = 'model';
