-- Messages, conversations, cursors and groups.
--
-- Ids are bytea: they sort by bytes whatever the database's collation, and may hold any character.
-- `data` is the row as the program encodes it, with a version of its own in the first byte; what a
-- statement asks for is a column.
--
-- /*hash COLUMN FILL*/ is replaced by the program: partitions by hash of the column, whose pages are
-- filled to FILL percent, so that rows which change all the time stay on their page.

-- The version of the newest commit: one row, locked by each commit from choosing its versions until
-- it is durable.
CREATE TABLE millrace.clock (
    id smallint PRIMARY KEY,
    version bigint NOT NULL
);
INSERT INTO millrace.clock (id, version) VALUES (1, 0);

-- Each process's last commit, by which it finds out whether a commit that was not answered happened.
CREATE TABLE millrace.writers (
    writer_id bytea PRIMARY KEY,
    version bigint NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE millrace.conversations (
    conversation_id bytea NOT NULL,
    -- The version of the commit that last changed who is in it; 0: the first members are in it.
    members_version bigint NOT NULL DEFAULT 0,
    data bytea NOT NULL,
    PRIMARY KEY (conversation_id)
) /*hash conversation_id 70*/;

CREATE TABLE millrace.messages (
    conversation_id bytea NOT NULL,
    sequence bigint NOT NULL,
    -- Of the commit that stored it.
    version bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (conversation_id, sequence)
) /*hash conversation_id 100*/;

CREATE TABLE millrace.message_ids (
    sender_id bytea NOT NULL,
    client_message_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (sender_id, client_message_id)
) /*hash sender_id 100*/;

-- Cursors and settings; of those who have left, too.
CREATE TABLE millrace.members (
    user_id bytea NOT NULL,
    conversation_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (user_id, conversation_id)
) /*hash user_id 70*/;

CREATE TABLE millrace.groups (
    group_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (group_id)
);

-- Who is in a group now.
CREATE TABLE millrace.group_members (
    group_id bytea NOT NULL,
    user_id bytea NOT NULL,
    PRIMARY KEY (group_id, user_id)
) /*hash group_id 100*/;

CREATE TABLE millrace.join_requests (
    group_id bytea NOT NULL,
    user_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (group_id, user_id)
);

-- Members who came when there were messages already.
CREATE TABLE millrace.joined_later (
    group_id bytea NOT NULL,
    sequence bigint NOT NULL,
    user_id bytea NOT NULL,
    PRIMARY KEY (group_id, sequence, user_id)
);

-- Messages whose content is gone.
CREATE TABLE millrace.erased (
    conversation_id bytea NOT NULL,
    sequence bigint NOT NULL,
    -- 1: it counted as unread.
    counted bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (conversation_id, sequence)
);

-- The same in the order in which it happened.
CREATE TABLE millrace.changes (
    conversation_id bytea NOT NULL,
    version bigint NOT NULL,
    sequence bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (conversation_id, version)
);

-- What users have deleted.
CREATE TABLE millrace.deletions (
    user_id bytea NOT NULL,
    conversation_id bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (user_id, conversation_id)
);

CREATE TABLE millrace.expiries (
    expires_at_ms bigint NOT NULL,
    conversation_id bytea NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (expires_at_ms, conversation_id, sequence)
);
