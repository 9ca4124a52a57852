Code.require_file("../test/support/certificates.ex", __DIR__)

defmodule Bench.Feed do
  @moduledoc "The peer of a benchmark, in an operating system process of its own."

  @program Path.expand("target/release/feed", __DIR__)
  @tls_program Path.expand("tls_feed.py", __DIR__)

  @doc "Starts a feed of `bytes`: `{feed, port}`. It ends with the calling process, or by `stop/1`."
  def start(mode, bytes, milliseconds \\ 1000) do
    path = file(bytes)
    open(@program, [to_string(mode), path, to_string(milliseconds)])
  end

  @doc "The same with TLS: a flood, or the bytes at an interval."
  def start_tls(bytes, milliseconds \\ 0) do
    config = Barytherium.Certificates.make(["localhost"]).server
    {type, key} = config[:key]

    pem =
      :public_key.pem_encode([
        {:Certificate, config[:cert], :not_encrypted},
        {type, key, :not_encrypted}
      ])

    open("/usr/bin/python3", [@tls_program, file(bytes), file(pem), "#{milliseconds}"])
  end

  def stop(port), do: Port.close(port)

  defp open(program, args) do
    port = Port.open({:spawn_executable, program}, [:binary, {:line, 64}, args: args])

    receive do
      {^port, {:data, {:eol, number}}} -> {port, String.to_integer(number)}
    end
  end

  defp file(bytes) do
    path = Path.join(System.tmp_dir!(), "barytherium-bench-#{:erlang.phash2(bytes)}")
    File.write!(path, bytes)
    path
  end
end
