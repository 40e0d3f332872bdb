# Exported models on a processor: no torch, no study. The steps are those of workflow/serving.sh.
#   docker build -t serving .
#   docker run --rm -v "$PWD/lesions:/model:ro" -v "$PWD/photographs:/in:ro" -v "$PWD/masks:/out" \
#     serving predict /model /in --out /out/new
#   docker run --rm --network host -v "$PWD/lesions:/model:ro" serving serve app /model
FROM python:3.11-slim AS build
COPY . /source
RUN bash /source/workflow/serving.sh /opt/medseg

FROM python:3.11-slim
COPY --from=build /opt/medseg /opt/medseg
RUN useradd --create-home medseg
USER medseg
WORKDIR /home/medseg
ENV PATH=/opt/medseg/bin:$PATH
ENTRYPOINT ["medseg"]
