defmodule Barytherium.OpenSSL do
  @moduledoc """
  A server of OpenSSL: the command `openssl s_server`, whose input is sent to the client, except for
  lines with one-letter commands, or `openssl_server.py`. It ends with the test.
  """

  import ExUnit.Assertions

  @python Path.expand("openssl_server.py", __DIR__)

  @doc "Starts `openssl s_server` with `files`, see `Certificates.write!/2`: `{server, port}`."
  def s_server(files, arguments) do
    arguments =
      ~w(s_server -accept 127.0.0.1:0 -cert #{files.server[:certfile]} -key #{files.server[:keyfile]}) ++
        arguments

    server = open(System.find_executable("openssl"), arguments)
    [_line, port] = await_output(server, ~r/ACCEPT 127\.0\.0\.1:(\d+)/)
    {server, String.to_integer(port)}
  end

  @doc "Starts a server that does what the first header of each CONNECT says: `{server, port}`."
  def scripted(files) do
    %{server: [certfile: certificate, keyfile: key]} = files
    server = open(System.find_executable("python3"), [@python, certificate, key])
    [_line, port] = await_output(server, ~r/listening on (\d+)/)
    {server, String.to_integer(port)}
  end

  defp open(program, arguments) do
    options = [:binary, :stderr_to_stdout, args: arguments]
    server = Port.open({:spawn_executable, program}, options)
    {:os_pid, pid} = Port.info(server, :os_pid)
    ExUnit.Callbacks.on_exit(fn -> System.cmd("kill", ["#{pid}"], stderr_to_stdout: true) end)
    server
  end

  @doc "Writes to the server's standard input."
  def input(server, data), do: Port.command(server, data)

  @doc "Waits until the server has printed what matches `pattern`. Returns the match."
  def await_output(server, pattern, printed \\ "") do
    case Regex.run(pattern, printed) do
      nil ->
        assert_receive {^server, {:data, data}}, 10_000, "only this was printed: #{printed}"
        await_output(server, pattern, printed <> data)

      match ->
        match
    end
  end
end
