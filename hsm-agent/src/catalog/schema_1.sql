-- The index: one row per file that hsm has something to say about.
CREATE TABLE files (
    key            BLOB PRIMARY KEY,
    object         BLOB,
    state          INTEGER NOT NULL,
    generation     INTEGER NOT NULL,
    size           INTEGER NOT NULL,
    mtime_ns       INTEGER NOT NULL,
    ctime_ns       INTEGER NOT NULL,
    local_bytes    INTEGER,
    path_hint      BLOB NOT NULL,
    archived_at_ns INTEGER,
    instance       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Operations that have begun and whose outcome is not recorded yet.
CREATE TABLE intents (
    id         INTEGER PRIMARY KEY,
    op         INTEGER NOT NULL,
    key        BLOB NOT NULL,
    object     BLOB NOT NULL,
    started_ns INTEGER NOT NULL,
    path_hint  BLOB NOT NULL
) STRICT;

-- Objects that no inode refers to, kept for the retention time.
CREATE TABLE retired (
    object   BLOB PRIMARY KEY,
    since_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row. complete: the index covers the whole file system. instance, instance_number: the boot
-- or mount that the agent ran in last, and how many there were; files.ctime_ns counts only in the
-- instance that wrote it.
CREATE TABLE meta (
    complete        INTEGER NOT NULL,
    instance        BLOB,
    instance_number INTEGER NOT NULL
) STRICT;
INSERT INTO meta VALUES (0, NULL, 0);

-- Files and bytes per state, kept by the triggers so that nobody has to scan the index for them.
-- "bytes" is ANY because a sum beyond 63 bits becomes a floating-point number.
CREATE TABLE totals (
    state INTEGER PRIMARY KEY,
    files INTEGER NOT NULL,
    bytes ANY NOT NULL
) STRICT;
INSERT INTO totals VALUES (0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (5, 0, 0);

CREATE TRIGGER files_added AFTER INSERT ON files BEGIN
    UPDATE totals SET files = files + 1, bytes = bytes + NEW.size WHERE state = NEW.state;
END;

CREATE TRIGGER files_removed AFTER DELETE ON files BEGIN
    UPDATE totals SET files = files - 1, bytes = bytes - OLD.size WHERE state = OLD.state;
END;

CREATE TRIGGER files_changed AFTER UPDATE ON files
WHEN OLD.state <> NEW.state OR OLD.size <> NEW.size BEGIN
    UPDATE totals SET files = files - 1, bytes = bytes - OLD.size WHERE state = OLD.state;
    UPDATE totals SET files = files + 1, bytes = bytes + NEW.size WHERE state = NEW.state;
END;
