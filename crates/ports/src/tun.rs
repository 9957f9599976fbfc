//! stub
mod neighbours;
mod subnets;
