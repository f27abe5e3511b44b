mod hostile;
mod image;
mod live;
mod oracle;
mod real;
mod synthetic;
