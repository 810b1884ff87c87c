//! When sequences arrive and how long they are: Poisson arrivals, recorded traces, a fixed number in flight.
