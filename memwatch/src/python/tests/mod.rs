mod interpreters;
mod line_tables;
mod live;
mod made_up;
mod pools;
mod stripped;
