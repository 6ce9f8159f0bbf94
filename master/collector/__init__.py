"""The ROUTER end of the link: authentication, sessions, batches, acknowledgements."""
