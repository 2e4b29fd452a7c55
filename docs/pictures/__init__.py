"""The pictures of the documentation: ``make pictures`` draws all of them, ``make pictures PICTURES=samples`` one.

A picture is a module here that has ``IMAGE``, the file that it writes to ``docs/images``, ``DATA``, the folders of data
that it needs (where one is absent, the committed picture is kept), and ``draw(path, data_dir)``. Tests compare the
modules with the files and the pages.
"""
