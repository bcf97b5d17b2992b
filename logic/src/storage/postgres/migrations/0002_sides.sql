-- Matters beside the messages: rows under keys of bytes, as the program makes them.
--
-- `part` is the place of a table in its group. `version` is the one of the commit that wrote the row;
-- by it processes follow what others have written.

-- One row for each matter: its version, and the lock of whoever changes something in it.
CREATE TABLE millrace.sides (
    name text PRIMARY KEY,
    version bigint NOT NULL
);
INSERT INTO millrace.sides (name, version) VALUES
    ('accounts', 0), ('attachments', 0), ('notices', 0), ('push_tokens', 0), ('relations', 0),
    ('revocations', 0), ('rooms', 0);

/*side accounts*/
/*side attachments*/
/*side notices*/
/*side push_tokens*/
/*side relations*/
/*side revocations*/
/*side rooms*/
