"""What is seen: pretrained parts and image sets, drawn scenes, and every source as one kind of dataset."""
