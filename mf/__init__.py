"""Matrix factorization for ratings that live in Supabase: ratings in, model out, embeddings published."""

__version__ = "0.1.0"
