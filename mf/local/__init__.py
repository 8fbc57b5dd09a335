"""An embedded Supabase for laptops and tests: real PostgreSQL with pgvector, real PostgREST, a gateway; no docker, root
or not."""

from mf.local.place import delete_home
from mf.local.stack import LocalSupabase, databases, recreate_database

__all__ = ["LocalSupabase", "databases", "delete_home", "recreate_database"]
