//! Requirements times host facts gives a report
