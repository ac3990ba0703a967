"""Identity: who calls, and what they may do.

Users sign in by password and get short access tokens and a refresh token that works once; ending a session or a user
ends its tokens and streams within a second. `role_table.py` is the one table of roles and permissions, `rights.py`
answers from it, `directory.py` keeps what is in use in memory (NOTIFY, and a poll each second in case it is lost).
Private keys lie sealed in PostgreSQL, passwords and refresh tokens only as hashes. It refuses to say which of user
name and password was wrong, to trust its memory when PostgreSQL is away, and to lose the last platform admin.
"""
