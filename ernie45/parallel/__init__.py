"""How a model is spread over processes and memory; from outside, so that the model stays plain code for one device."""
