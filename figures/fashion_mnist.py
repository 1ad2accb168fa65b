def draw(folders, path):
    return path
