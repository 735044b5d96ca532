-- Receivers are shown with the number of deliveries that were given up. There are few of those among the delivered ones of a month.

create index webhook_deliveries_dead on webhook_deliveries (receiver_id) where state = 'dead';
