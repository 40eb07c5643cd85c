"""What a viewer shows of images and masks: tiles at every zoom, without torch and in bounded memory."""
