// The head: raw maps to an overlay on the photo, by libpycam.
#pragma once

#include "graph.hpp"

struct Painted {
  bool flat;  // nothing spoke for the class
  double head_ms;
};

struct Look {
  std::string colormap = "jet";
  double alpha = 0.5;
};

// Paints the heatmap onto the part of the photo that the model saw; the rest of it stays.
// Failure(Exit::head): a raw map is not finite, or memory ran out.
Painted paint(Picture& photo, const Answer& answer, const Look& look, int threads);

// Failure(Exit::usage): what libpycam would refuse.
void check_look(const Look& look);
