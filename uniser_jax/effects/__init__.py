"""The physics of soft effects: numpy in, numpy out, every random draw from an explicit generator."""
