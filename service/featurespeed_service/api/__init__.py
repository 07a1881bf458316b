"""The HTTP application: what is asked, and how it is answered."""
