"""How many machines a load takes: the service simulated, from measured costs, and checked against real runs."""
