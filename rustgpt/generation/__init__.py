"""What makes text with a model: the choice of a token, the loop over tokens, the chat."""
