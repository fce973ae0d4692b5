"""Storage tiering for a trading platform: every row in the right place for its age, and proof that none is lost.

model.py     the nouns          plan/    decide (pure)            ops/     do (effects; stores come in as arguments)
errors.py    three families     stores/  reach (one per system)   access/  the client that applications use
settings.py  the environment    cli.py   the `tiering` command

Applications import this package; it never imports Prefect.
"""
