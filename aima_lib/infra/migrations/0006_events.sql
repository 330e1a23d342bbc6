ALTER TABLE events ADD COLUMN correlation_id TEXT;
ALTER TABLE events ADD COLUMN causation_id TEXT;
ALTER TABLE events ADD COLUMN total INTEGER NOT NULL DEFAULT 0;
UPDATE events SET total = sums.total FROM (
  SELECT seq, sum(length(CAST(payload AS BLOB)) + 250) OVER (ORDER BY seq) AS total FROM events
) AS sums WHERE sums.seq = events.seq;
CREATE INDEX event_subject ON events (subject, type, seq) WHERE subject IS NOT NULL;
CREATE INDEX event_correlation ON events (correlation_id, seq) WHERE correlation_id IS NOT NULL;
ALTER TABLE audit ADD COLUMN correlation_id TEXT;
ALTER TABLE audit ADD COLUMN causation_id TEXT;
CREATE INDEX audit_correlation ON audit (correlation_id, seq) WHERE correlation_id IS NOT NULL;
