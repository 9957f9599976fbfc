//! Programs that measure ringway. `peers` measures it beside what its users would otherwise run; `flame` shows where
//! the cycles of a frame go; `host` measures the way to the host and back; `copies` what one copy saves, and
//! `neighbours` whether the machine's processors slow each other down.
//!
//! # How it works
//!
//! | module         | what it holds                                                              |
//! | -------------- | -------------------------------------------------------------------------- |
//! | `peers`        | the first program                                                          |
//! | `flame`        | the second one                                                             |
//! | `host`         | the third one                                                              |
//! | `copies`       | the fourth one                                                             |
//! | `neighbours`   | the fifth one                                                              |
//! | `matrix`       | what is measured: cases, switches, generators, and the names of all cells  |
//! | `means`        | what there is to measure with, and what is left out for want of it         |
//! | `machine`      | the machine and all versions                                               |
//! | `switches`     | starts each switch                                                         |
//! | `generators`   | loads it                                                                   |
//! | `measure`      | one case, one switch, one round                                            |
//! | `usage`        | processor time and memory of a process                                     |
//! | `results`      | raw results, kept in a JSON file from run to run                           |
//! | `statistics`   | medians and spreads                                                        |
//! | `report`       | tables                                                                     |
//! | `targets`      | what is wanted, and whether it is reached                                  |
//! | `drawings`     | throughput over size, latency over load                                    |
//! | `interrupt`    | Ctrl-C                                                                     |

mod copies;
mod drawings;
mod flame;
mod generators;
mod host;
mod interrupt;
mod machine;
mod matrix;
mod means;
mod measure;
mod neighbours;
mod peers;
mod report;
mod results;
mod statistics;
mod switches;
mod targets;
mod usage;

pub use copies::main as copies;
pub use flame::main as flame;
pub use host::main as host;
pub use neighbours::main as neighbours;
pub use peers::main as peers;
