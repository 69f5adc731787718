"""Pictures: folders of images, styles the project draws itself, and their partition into clients."""
