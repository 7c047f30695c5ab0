//! (see the plan)
