defmodule Barytherium.HttpsServer do
  @moduledoc """
  An HTTPS server for one test. It answers each path with what `routes` has for it, and tells the test
  process which paths were asked for.
  """

  @doc """
  Starts a server. `answer` is called with the path and returns `{status, headers, body}`. The calling
  process gets `{:requested, port, path}` for each request.
  """
  def start(tls_options, answer) do
    {:ok, listener} =
      :ssl.listen(0, [ip: {127, 0, 0, 1}, mode: :binary, active: false] ++ tls_options)

    {:ok, {_address, port}} = :ssl.sockname(listener)
    test = self()

    ExUnit.Callbacks.start_supervised!({Task, fn -> serve(listener, port, answer, test) end},
      id: port
    )

    port
  end

  defp serve(listener, port, answer, test) do
    {:ok, socket} = :ssl.transport_accept(listener)

    # The handshake fails in tests where the client does not trust this server.
    with {:ok, socket} <- :ssl.handshake(socket),
         {:ok, request} <- read(socket, "") do
      ["GET", path | _rest] = String.split(request, " ")
      send(test, {:requested, port, path})
      # A client that refuses a large answer closes before its end.
      :ssl.send(socket, response(answer.(path)))
      :ssl.close(socket)
    end

    serve(listener, port, answer, test)
  end

  defp read(socket, before) do
    if String.ends_with?(before, "\r\n\r\n") do
      {:ok, before}
    else
      with {:ok, bytes} <- :ssl.recv(socket, 0), do: read(socket, before <> bytes)
    end
  end

  defp response({status, headers, body}) do
    headers = [{"content-length", byte_size(body)}, {"connection", "close"} | headers]

    [
      "HTTP/1.1 #{status} -\r\n",
      Enum.map(headers, fn {name, value} -> "#{name}: #{value}\r\n" end),
      "\r\n",
      body
    ]
  end

  @doc """
  Starts a proxy that connects to every host at this port, whatever its name is. The calling process gets
  `{:proxied, "host:port"}`.
  """
  def start_proxy(target_port) do
    options = [:binary, ip: {127, 0, 0, 1}, active: false]
    {:ok, listener} = :gen_tcp.listen(0, options)
    {:ok, port} = :inet.port(listener)
    test = self()

    ExUnit.Callbacks.start_supervised!({Task, fn -> proxy(listener, target_port, test) end},
      id: port
    )

    port
  end

  defp proxy(listener, target_port, test) do
    {:ok, client} = :gen_tcp.accept(listener)
    {:ok, request} = :gen_tcp.recv(client, 0)
    ["CONNECT", target | _rest] = String.split(request, " ")
    send(test, {:proxied, target})
    {:ok, server} = :gen_tcp.connect({127, 0, 0, 1}, target_port, [:binary, active: true])
    :ok = :gen_tcp.send(client, "HTTP/1.1 200 Connection established\r\n\r\n")
    :ok = :inet.setopts(client, active: true)
    relay(client, server)
    proxy(listener, target_port, test)
  end

  defp relay(client, server) do
    receive do
      {:tcp, ^client, bytes} -> relay_to(server, bytes, client, server)
      {:tcp, ^server, bytes} -> relay_to(client, bytes, client, server)
      {:tcp_closed, _socket} -> Enum.each([client, server], &:gen_tcp.close/1)
    end
  end

  defp relay_to(receiver, bytes, client, server) do
    :gen_tcp.send(receiver, bytes)
    relay(client, server)
  end
end
