"""Drawing: body (a pose in 3-D), appearance, painter, torso, face, drawn_person, backdrop; scene joins all."""
