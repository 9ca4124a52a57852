defmodule Mix.Tasks.Barytherium.Listen do
  @shortdoc "Shows the frames of a STOMP feed"
  @moduledoc """
  Connects to a feed and shows its frames. Every second it prints one frame in full, and the rate.

      mix barytherium.listen [options]
      mix barytherium.listen stomp://user:pass@host:port/destination [options]

  Without a URL the feed is a `Barytherium.TestBroker` in this VM. The scheme of a URL is `stomp`,
  or `stomp+ssl` for TLS. The port defaults to 61613 (61614 with TLS). The path is the destination,
  including its slash: `/queue/a`, `/topic/b`. The virtual host is `/`; `?host=name` changes it.

  The task does not acknowledge messages of a broker, so a queue keeps them. The broker delivers
  them again later, to any client. Until then it may hold back further messages.

    * `--ack` - acknowledge messages, which removes them from the queue
    * `--seconds` - how long to listen. Default: 10
    * `--rate` - frames per second of the feed in this VM. Default: 20000
    * `--size` - size of their bodies in bytes. Default: 256
    * `--cacertfile` - CA certificates to trust with `stomp+ssl`, instead of the system's
    * `--insecure` - do not verify the server with `stomp+ssl`
  """
  use Mix.Task

  alias Barytherium.{Network, TestBroker}
  alias Mix.Tasks.Barytherium.Listen.Listener

  @switches [
    seconds: :integer,
    rate: :integer,
    size: :integer,
    ack: :boolean,
    cacertfile: :string,
    insecure: :boolean
  ]

  # How long the broker may take to answer DISCONNECT, in milliseconds.
  @close_timeout 1_000

  @impl true
  def run(args) do
    {opts, urls} = OptionParser.parse!(args, strict: @switches)
    Mix.Task.run("app.start")
    {:ok, listener} = urls |> feed(opts) |> Listener.start()
    monitor = Process.monitor(listener)

    receive do
      {:DOWN, ^monitor, :process, ^listener, {:shutdown, reason}} -> Mix.raise(reason)
    after
      Keyword.get(opts, :seconds, 10) * 1000 -> finish(listener)
    end
  end

  # After a DISCONNECT the broker can deliver the unacknowledged messages again at once.
  defp finish(listener) do
    {:ok, network} = GenServer.call(listener, :summary)
    Network.close(network, @close_timeout)
  end

  defp feed([], opts) do
    body = String.duplicate("x", Keyword.get(opts, :size, 256))
    rate = Keyword.get(opts, :rate, 20_000)
    {:ok, broker} = TestBroker.start_link(rate: rate, body: body)
    Mix.shell().info("A feed in this VM: #{rate} frames/s of #{byte_size(body)} bytes")

    %{
      host: "127.0.0.1",
      port: TestBroker.port(broker),
      destination: "/topic/feed",
      headers: [{"host", "/"}],
      ack: true,
      opts: []
    }
  end

  defp feed([url], opts) do
    case URI.parse(url) do
      %URI{scheme: scheme, host: host, path: "/" <> _} = uri
      when scheme in ["stomp", "stomp+ssl"] and is_binary(host) ->
        remote_feed(uri, scheme == "stomp+ssl", opts)

      _other ->
        # The URL may contain a password.
        shown = String.replace(url, ~r{//[^/]*@}, "//...@")
        Mix.raise("not a URL of the form stomp://user:pass@host:port/destination: #{shown}")
    end
  end

  defp feed(_urls, _opts), do: Mix.raise("at most one URL, see mix help barytherium.listen")

  defp remote_feed(uri, secure, opts) do
    virtual_host = URI.decode_query(uri.query || "")["host"] || "/"

    %{
      host: uri.host,
      port: uri.port || if(secure, do: 61_614, else: 61_613),
      destination: URI.decode(uri.path),
      headers: [{"host", virtual_host} | credentials(uri.userinfo)],
      ack: Keyword.get(opts, :ack, false),
      opts: if(secure, do: [secure: true] ++ trust(opts), else: [])
    }
  end

  defp trust(opts) do
    if opts[:insecure], do: [verify: :verify_none], else: Keyword.take(opts, [:cacertfile])
  end

  defp credentials(nil), do: []

  defp credentials(userinfo) do
    [~w(login passcode), String.split(userinfo, ":", parts: 2)]
    |> Enum.zip_with(fn [name, value] -> {name, URI.decode(value)} end)
  end
end
