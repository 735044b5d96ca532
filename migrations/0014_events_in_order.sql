-- A migration of its own: the columns before it lock the table against readers too, and this reads all of it.
create index events_in_order on events (xact, id) where xact is not null;
