# dcclip serve on the CPU, without torch:
#   docker build -t dcclip . && docker run -p 127.0.0.1:8000:8000 -v ~/Pictures:/photos:ro dcclip --folder /photos
FROM python:3.13-slim

COPY . /src
RUN python -m pip install --no-cache-dir "/src[duplicates,heic,serve]" && rm -r /src \
    && useradd --create-home --uid 1000 dcclip && install -d -o dcclip /cache
ENV DCCLIP_CACHE=/cache
USER 1000
WORKDIR /home/dcclip

EXPOSE 8000
ENTRYPOINT ["dcclip", "serve", "--host", "0.0.0.0", "--port", "8000", "--model", "starter"]
