"""Embedded Supabase for laptops and tests: real PostgreSQL with pgvector, PostgREST and a gateway.

It needs no docker and runs as root or as another user.
"""

from mf.local.place import delete_home
from mf.local.stack import LocalSupabase, databases, recreate_database

__all__ = ["LocalSupabase", "databases", "delete_home", "recreate_database"]
