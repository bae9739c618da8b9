"""The outbox: events that are written in a user's transaction and published once it has committed.

Nothing is imported here, so that who only publishes needs no SQLAlchemy.
"""
