//! Whole pipelines through the planner: how they are cut, and what their plans compute.

mod distributed;
mod fixture;
mod graphs;
mod mistakes;
mod rows;
