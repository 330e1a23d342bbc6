from tests.docker.daemon import Dockerd


def test_x(dockerd: Dockerd, busybox: str) -> None:
    api = dockerd.api()
    c = api.create_container(busybox, ["/bin/sh", "-c", "wget -T 1 -O - http://1.1.1.1; ls /bin | head -3"])
    api.start(c["Id"])
    api.wait(c["Id"])
    print(api.logs(c["Id"]))
    api.close()
