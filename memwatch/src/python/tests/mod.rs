mod interpreters;
mod line_tables;
mod live;
mod pools;
