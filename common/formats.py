"""What files of rows are, wherever they are read."""

NPZ_NAMES = ("X", "x", "images")  # of the array of rows in an .npz archive, where there are others
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}  # of Pillow
