mod elf;
mod live;
mod placer;
mod plan;
mod symbols;
