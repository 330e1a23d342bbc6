CREATE TABLE spending (
  caller TEXT NOT NULL,
  kind TEXT NOT NULL,
  slots TEXT NOT NULL CHECK (json_valid(slots)),
  PRIMARY KEY (caller, kind)
) WITHOUT ROWID;
