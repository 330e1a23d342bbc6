-- Models by what is asked of them.
CREATE INDEX model_type ON documents (json_extract(body, '$.type')) WHERE kind = 'model';
CREATE INDEX model_status ON documents (json_extract(body, '$.status')) WHERE kind = 'model';
CREATE INDEX model_format ON documents (json_extract(body, '$.format')) WHERE kind = 'model';
CREATE INDEX model_digest ON documents (json_extract(body, '$.digest')) WHERE kind = 'model';
CREATE INDEX model_repo ON documents (json_extract(body, '$.source.repo')) WHERE kind = 'model';
-- How many models there are: counting them anew for each list would cost more than the list.
CREATE TABLE document_counts (kind TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO document_counts SELECT 'model', count(*) FROM documents WHERE kind = 'model';
CREATE TRIGGER model_counted AFTER INSERT ON documents WHEN new.kind = 'model' BEGIN
  UPDATE document_counts SET count = count + 1 WHERE kind = 'model';
END;
CREATE TRIGGER model_uncounted AFTER DELETE ON documents WHEN old.kind = 'model' BEGIN
  UPDATE document_counts SET count = count - 1 WHERE kind = 'model';
END;
-- Which models have a blob. Kept by the documents themselves.
CREATE TABLE model_blobs (
  sha256 TEXT NOT NULL,
  model_id TEXT NOT NULL,
  PRIMARY KEY (sha256, model_id)
) WITHOUT ROWID;
CREATE INDEX model_blobs_model ON model_blobs (model_id);
CREATE TRIGGER model_blobs_new AFTER INSERT ON documents WHEN new.kind = 'model' BEGIN
  INSERT OR IGNORE INTO model_blobs
    SELECT json_extract(value, '$.sha256'), new.id FROM json_each(new.body, '$.files')
    WHERE json_extract(value, '$.sha256') IS NOT NULL AND json_extract(new.body, '$.source.kind') <> 'external';
END;
CREATE TRIGGER model_blobs_changed AFTER UPDATE OF body ON documents WHEN new.kind = 'model' BEGIN
  DELETE FROM model_blobs WHERE model_id = old.id;
  INSERT OR IGNORE INTO model_blobs
    SELECT json_extract(value, '$.sha256'), new.id FROM json_each(new.body, '$.files')
    WHERE json_extract(value, '$.sha256') IS NOT NULL AND json_extract(new.body, '$.source.kind') <> 'external';
END;
CREATE TRIGGER model_blobs_gone AFTER DELETE ON documents WHEN old.kind = 'model' BEGIN
  DELETE FROM model_blobs WHERE model_id = old.id;
END;
INSERT OR IGNORE INTO model_blobs
  SELECT json_extract(value, '$.sha256'), documents.id FROM documents, json_each(body, '$.files')
  WHERE kind = 'model' AND json_extract(value, '$.sha256') IS NOT NULL AND json_extract(body, '$.source.kind') <> 'external';
